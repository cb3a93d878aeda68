"""Out to other programs and in from them."""
