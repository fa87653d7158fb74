"""Asks a running server, with nothing but Python: python examples/ask_server.py [URL]."""

import json
import os
import sys
import urllib.request

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
texts = ["it broke on the second day", "just right"]
body = {"texts": texts, "adapters": "all", "top_k": 1}
headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('RANKWISE_TOKEN')}"}
request = urllib.request.Request(f"{url}/v1/predict", json.dumps(body).encode(), headers)
for text, found in zip(texts, json.load(urllib.request.urlopen(request))["predictions"], strict=True):
    for answer in found["answers"]:
        print(f"{answer['label']:<12} {answer['probability']:.2f}  {answer['adapter']:<10} {text}")
