#!/usr/bin/env bash
# Makes a token by which signet-ca knows a node engine, and the key that signs it where there is none yet.
# usage: node-token.sh <folder> <issuer> <node> [lifetime in seconds]
# Writes <folder>/node-keys.json (tokens.jwks of signet-ca) and <folder>/<node>.token (ca.istio.token of signetd). The
# key, <folder>/node-key.pem, lets its holder be any node: keep it off the nodes. A token is good for a day unless told
# otherwise; renew it from a timer, signetd reads the file anew at each use.
set -euo pipefail
umask 077

folder=${1:?folder} issuer=${2:?issuer} node=${3:?node} lifetime=${4:-86400}
key=$folder/node-key.pem

base64url() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }

mkdir -p "$folder"
[[ -e $key ]] || openssl genrsa -out "$key" 3072 2>/dev/null
modulus=$(openssl rsa -in "$key" -noout -modulus | cut -d= -f2 | tr 'A-F' 'a-f' | sed 's/../\\x&/g')
printf '{"keys":[{"kty":"RSA","use":"sig","alg":"RS256","kid":"nodes","n":"%s","e":"AQAB"}]}\n' \
    "$(printf '%b' "$modulus" | base64url)" >"$folder/node-keys.json"
# Public keys: signet-ca reads them under a user of its own.
chmod 644 "$folder/node-keys.json"

now=$(date +%s)
header='{"alg":"RS256","typ":"JWT","kid":"nodes"}'
claims=$(printf '{"iss":"%s","aud":["istio-ca"],"iat":%d,"nbf":%d,"exp":%d,"sub":"%s","kubernetes.io":%s}' \
    "$issuer" "$now" "$now" "$((now + lifetime))" system:serviceaccount:signet-system:signetd \
    "$(printf '{"namespace":"signet-system","serviceaccount":{"name":"signetd","uid":"signetd"},"pod":{"name":"signetd-%s","uid":"signetd-%s"},"node":{"name":"%s","uid":"%s"}}' \
        "$node" "$node" "$node" "$node")")
signed=$(printf '%s' "$header" | base64url).$(printf '%s' "$claims" | base64url)
printf '%s.%s' "$signed" "$(printf '%s' "$signed" | openssl dgst -sha256 -sign "$key" -binary | base64url)" \
    >"$folder/$node.token"
