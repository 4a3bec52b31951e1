"""Models of the Hugging Face Hub: which a recipe needs, downloads, hashes."""
