"""What a plan costs, worked out without running it: occupancy, global traffic, and the bound that a GPU sets."""
