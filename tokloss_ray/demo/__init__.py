"""Real data and a small trained model, so that the job can be tried at once."""

from pathlib import Path

DATA = Path(__file__).parent / "data" / "panx_de_validation.parquet"
MODEL = Path(__file__).parent / "model"
