# /// script
# dependencies = ["requests"]
#
# [tool.will-it-run]
# does = "gets JSON from a server on loopback"
# expects = {"status" = 200, "temperature" = 21.5}
# quick = true
# ///
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import requests


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"temperature": 21.5}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
answer = requests.get(f"http://127.0.0.1:{server.server_port}/", timeout=5)
server.shutdown()
result = {"status": answer.status_code, **answer.json()}
