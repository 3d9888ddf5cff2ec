"""How suspicious a label is."""
