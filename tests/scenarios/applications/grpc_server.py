"""A gRPC service without generated code, whose messages are bytes: grpc_server.py PORT"""

import concurrent.futures
import signal
import sys
import time

import grpc


def reverse(requests, context):
    """Answers each message with its bytes in reverse order, as it comes."""
    for request in requests:
        yield request[::-1]


def slow(request, context):
    """Answers after half a minute, or never, if the deadline comes first."""
    for _ in range(300):
        if not context.is_active():
            return b""
        time.sleep(0.1)
    return b"late"


def refuse(request, context):
    context.set_trailing_metadata((("reason", "sold-out"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "none of them is left")


server = grpc.server(
    concurrent.futures.ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", 16 << 20)]
)
handlers = {
    "Reverse": grpc.stream_stream_rpc_method_handler(reverse),
    "Slow": grpc.unary_unary_rpc_method_handler(slow),
    "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
}
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("shop.Orders", handlers)])
server.add_insecure_port(f"0.0.0.0:{sys.argv[1]}")
server.start()
signal.sigwait([signal.SIGTERM])
server.stop(0).wait()
