# /// script
# dependencies = ["networkx"]
#
# [tool.will-it-run]
# does = "finds the shortest path"
# expects = ["a", "c", "d"]
# ///
import networkx as nx

graph = nx.Graph()
graph.add_weighted_edges_from([("a", "b", 4), ("a", "c", 1), ("c", "d", 2), ("b", "d", 1)])
result = nx.shortest_path(graph, "a", "d", weight="weight")
