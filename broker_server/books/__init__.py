"""Where a run's bytes went: counted on all sides, compared, and shown."""
