"""What a folder of finished files says: numbers, conclusions, and a page that shows them."""
