"""What is shown of records: tables, charts, the page, the comparison of two files, and the statistics behind them."""
