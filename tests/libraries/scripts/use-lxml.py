# /// script
# dependencies = ["lxml"]
#
# [tool.will-it-run]
# does = "finds nodes by XPath and transforms with XSLT"
# expects = ["a", "b"]
# quick = true
# ///
from lxml import etree

tree = etree.fromstring("<list><item id='a'/><item id='b'/></list>")
sheet = etree.XSLT(etree.fromstring("""
<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
  <xsl:template match="/"><n><xsl:value-of select="count(//item)"/></n></xsl:template>
</xsl:stylesheet>"""))
print(sheet(tree))
result = [str(each) for each in tree.xpath("//item/@id")]
