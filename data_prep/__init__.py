"""Preparation of datasets: adapters of their layouts, Parquet tables, triplets, packed images, drawn samples."""
