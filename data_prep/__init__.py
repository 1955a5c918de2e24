"""What goes into a model: dataset adapters, Parquet tables, triplets, packed images, drawn samples."""
