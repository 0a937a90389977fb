"""The package index that pip is configured to use: its pages, files and logins. Asked only while libraries are locked and fetched.

Imports the words. Read `pip_config`, then `pages`, `files`.
"""
