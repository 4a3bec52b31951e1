"""Models of the Hugging Face Hub: what a recipe needs, downloads, and checks of files."""
