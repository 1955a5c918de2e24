"""Scripts that measure, side by side in one run; each writes a dated table beside itself."""
