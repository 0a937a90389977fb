"""Settings of the property tests: no files left behind, and no clock decides."""

from hypothesis import settings

settings.register_profile("project", database=None, deadline=None)
settings.load_profile("project")
