"""Real pictures, sound and text under open licences: the pack of files that spark learns from beside the small world."""
