"""The packaged recipes, as .yaml files that hold differences only."""
