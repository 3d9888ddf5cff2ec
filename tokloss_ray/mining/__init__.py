"""Tables that say where the model, or the annotation, is wrong: made from the Parquet of a finished run alone."""
