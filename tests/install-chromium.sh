#!/bin/sh
# The report is tested in a real browser. Install it where we may; say what to do where not.
command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq chromium chromium-driver fonts-dejavu-core >/dev/null && exit 0
fi
echo "the report's tests need chromium and chromedriver on the PATH; install them" >&2
exit 1
