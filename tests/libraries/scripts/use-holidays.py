# /// script
# dependencies = ["holidays"]
#
# [tool.will-it-run]
# does = "names the holidays of a state"
# expects = ["Fronleichnam", false]
# ///
from datetime import date

import holidays

bavaria = holidays.country_holidays("DE", subdiv="BY", years=2026, language="de")
result = [bavaria.get(date(2026, 6, 4)), date(2026, 6, 5) in bavaria]
