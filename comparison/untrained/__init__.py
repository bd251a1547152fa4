"""What can be known of an activation or a parametrisation before any run: commands of compare.py on networks of their own."""
