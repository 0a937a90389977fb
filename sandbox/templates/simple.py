"""Simple transformation: one value in, one value out."""

celsius = payload["celsius"]
log(f"converting {celsius} °C")

result = {"celsius": celsius, "fahrenheit": round(celsius * 9 / 5 + 32, 1)}
output_topic = f"{topic or 'temperature'}/fahrenheit"
