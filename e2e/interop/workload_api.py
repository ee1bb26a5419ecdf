"""A pod's process that has its SVID by py-spiffe.

    workload_api.py ENDPOINT HOST:PORT SPIFFE_ID

ENDPOINT is the HOST:PORT of the Workload API. py-spiffe knows unix sockets only, so that one is
relayed to it; all that is said on it is the library's own, and the agent's.

The program says "jwt ID TOKEN", a JWT-SVID for the audience "server" that the library and the Workload API
both found valid; talks to HOST:PORT by mutual TLS with its
SVID and says "peer ID", who must be SPIFFE_ID; and says "svid ID SERIAL ROOTS" for each update,
until its standard input ends.
"""

import socket
import ssl
import sys
import tempfile
import threading

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe import JwtSvid, SpiffeId, WorkloadApiClient


def say(*words):
    print(*words, flush=True)


def carry(source, sink):
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other end is gone: the other direction hears of it


def relay(path, endpoint):
    host, port = endpoint.rsplit(":", 1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def accept():
        while True:
            inside, _ = listener.accept()
            outside = socket.create_connection((host, int(port)))
            for pair in (inside, outside), (outside, inside):
                threading.Thread(target=carry, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return "unix:" + path


def peer_of(der):
    names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    (uri,) = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    return str(SpiffeId(uri))


def greet(context, address, peer):
    svid = context.default_svid
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    roots = b"".join(root.public_bytes(Encoding.PEM) for root in bundle.x509_authorities)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False  # the SPIFFE ID is compared in place of a name
    tls.load_verify_locations(cadata=roots.decode())
    with tempfile.NamedTemporaryFile() as pem:
        pem.write(svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        pem.write(b"".join(cert.public_bytes(Encoding.PEM) for cert in svid.cert_chain))
        pem.flush()
        tls.load_cert_chain(pem.name)
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=20) as plain, tls.wrap_socket(plain) as conn:
        conn.sendall(b"hello")
        if conn.recv(5) != b"hello":
            raise SystemExit("it is not echoed")
        found = peer_of(conn.getpeercert(binary_form=True))
    if found != peer:
        raise SystemExit(f"the peer is {found}, not {peer}")
    say("peer", found)


def main():
    endpoint, address, peer = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        talk(WorkloadApiClient(relay(folder + "/api.sock", endpoint)), address, peer)


def talk(client, address, peer):
    token = client.fetch_jwt_svid(audience={"server"})
    bundle = client.fetch_jwt_bundles().get_bundle_for_trust_domain(token.spiffe_id.trust_domain)
    JwtSvid.parse_and_validate(token.token, bundle, {"server"})
    if client.validate_jwt_svid(token.token, "server").spiffe_id != token.spiffe_id:
        raise SystemExit("the token is of somebody else")
    say("jwt", token.spiffe_id, token.token)
    greet(client.fetch_x509_context(timeout=20), address, peer)

    def update(context):
        svid = context.default_svid
        bundle = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
        say("svid", svid.spiffe_id, format(svid.leaf.serial_number, "x"), len(bundle.x509_authorities))

    watching = client.stream_x509_contexts(update, lambda e: say("error", repr(e)))
    sys.stdin.read()
    watching.cancel()
    client.close()


main()
