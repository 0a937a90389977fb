"""JSON processing: filter, group and sum nested objects."""

from collections import defaultdict

totals = defaultdict(float)
for order in payload["orders"]:
    if order["status"] != "paid":
        log(f"order {order['id']} is {order['status']}: left out", "warning")
        continue
    for line in order["lines"]:
        totals[line["article"]] += line["quantity"] * line["price"]

result = {
    "revenue_by_article": {article: round(total, 2) for article, total in sorted(totals.items())},
    "revenue": round(sum(totals.values()), 2),
}
additional_data = {"orders_seen": len(payload["orders"])}
