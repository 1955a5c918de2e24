"""What every other package uses: reading of picture files, hints for mistyped names, the error of bad input."""
