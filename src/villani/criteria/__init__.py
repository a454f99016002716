"""Is F a Villani function? Criteria on any objective, each a verdict with its evidence."""
