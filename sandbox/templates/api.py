# /// script
# dependencies = ["beautifulsoup4", "requests"]
# ///
"""API and scraping with requests: fetch records and a page's headings, from hosts that the policy allows."""

import os

import requests
from bs4 import BeautifulSoup


def fetch(url, **options):
    """Return the answer of a server, or None after a record of what kept it away."""
    try:
        response = requests.get(url, timeout=10, **options)
        response.raise_for_status()
    except requests.RequestException as error:
        log(f"{url}: {error}", "warning")
        failures.append({"url": url, "reason": str(error)})
        return None
    return response


failures, records, headings = [], [], []
token = os.environ.get("API_TOKEN")  # sandbox run --secret API_TOKEN template:api

if answer := fetch(payload["api_url"], headers={"Authorization": f"Bearer {token}"} if token else {}):
    records = answer.json()
    log(f"{len(records)} records")

if page := fetch(payload["page_url"]):
    soup = BeautifulSoup(page.content, "html.parser")
    headings = [found.get_text(" ", strip=True) for found in soup.select(payload["selector"])]
    log(f"{len(headings)} headings")

if failures:
    log("a policy names the hosts that a script may reach: [network] mode and allow", "warning")

result = {"records": records, "headings": headings, "failures": failures}
output_topic = f"{topic or 'api'}/collected"
