"""An SMTP server that keeps each attachment of a mail in a file: smtp_server.py PORT DIRECTORY"""

import email
import email.policy
import pathlib
import signal
import sys

from aiosmtpd.controller import Controller


class Inbox:
    def __init__(self, directory):
        self.directory = pathlib.Path(directory)

    async def handle_DATA(self, server, session, envelope):
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        (self.directory / "text").write_text(mail.get_body().get_content())
        for part in mail.iter_attachments():
            (self.directory / part.get_filename()).write_bytes(part.get_payload(decode=True))
        return f"250 kept for {', '.join(envelope.rcpt_tos)}"


port, directory = int(sys.argv[1]), sys.argv[2]
Controller(Inbox(directory), hostname="0.0.0.0", port=port, data_size_limit=64 << 20).start()
signal.sigwait([signal.SIGTERM])
