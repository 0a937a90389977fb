# /// script
# dependencies = ["python-docx"]
#
# [tool.will-it-run]
# does = "writes a document with a table and reads it"
# expects = ["Report", "All is well."]
# ///
from docx import Document

document = Document()
document.add_heading("Report", 1)
document.add_paragraph("All is well.")
document.add_table(rows=2, cols=2).cell(0, 0).text = "roof"
document.save("report.docx")
save_file("report.docx")
result = [paragraph.text for paragraph in Document("report.docx").paragraphs]
