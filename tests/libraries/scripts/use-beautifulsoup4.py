# /// script
# dependencies = ["beautifulsoup4"]
#
# [tool.will-it-run]
# does = "reads the links of a page"
# expects = [["First", "/1"], ["Second", "/2"]]
# quick = true
# ///
from bs4 import BeautifulSoup

page = "<ul><li><a href='/1'>First</a><li><a href='/2'>Second</a></ul>"
soup = BeautifulSoup(page, "html.parser")
result = [[link.text, link["href"]] for link in soup.find_all("a")]
