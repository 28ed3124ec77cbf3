"""A receiver of alerts."""

# Prints the name of each alert that it receives.
RECEIVES = """
import http.server, json
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print("received", *(alert["labels"]["alertname"] for alert in body["alerts"]), flush=True)
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("", 8080), Handler).serve_forever()
"""
