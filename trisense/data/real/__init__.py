"""Real pictures, sound and text under open licences: what spark learns from beside the small world."""
