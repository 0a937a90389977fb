"""The package index that pip is configured to use: its pages, files and logins.

Asked only while libraries are locked and fetched.

Imports the basic modules (`errors`, `models` and their like). Read `pip_config`, then `pages`, `files`.
"""
