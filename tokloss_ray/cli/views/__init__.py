"""What commands print: tables, summaries and progress, from values that others have made."""
