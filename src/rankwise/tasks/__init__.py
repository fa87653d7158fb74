"""What a classifier's labels are: one for each text, or any number of them."""
