#!/bin/sh
echo "Content-Type: text/plain"
echo "Set-Cookie: seen=yes"
echo
date +%Y
