"""What finished files say: clips collected, compared, reviewed, reported."""
