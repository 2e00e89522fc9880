"""What the product costs, measured against what nothing costs: ratios within one run (`make bench`)."""
