"""The one who writes mails about accounts and hands them in."""

from datetime import datetime

from libs.common.errors import Invalid
from libs.common.mail import Answer, MailServer, Verdict, hand_in, new_message
from services.tenancy.adapters.letters import Look, render
from services.tenancy.domain.mail import Facts, Mail


class Postman:
    """Hands mails in to a server."""

    def __init__(self, server: MailServer) -> None:
        self._server = server

    async def send(self, mail: Mail, facts: Facts, look: Look, *, now: datetime) -> Answer:
        """Make one attempt, of fifteen seconds at most."""
        letter = render(
            mail.purpose,
            look,
            tenant=facts.tenant_name,
            at=facts.at,
            link=facts.link,
            until=facts.until,
        )
        try:
            message = new_message(
                self._server,
                mail.email,
                subject=letter.subject,
                # Each attempt has another token, so it must not pass for the same mail.
                message_id=f"{mail.id}.{mail.attempts}",
                at=now,
            )
        except Invalid as fault:
            return Answer(Verdict.REFUSED, f"the address {fault.errors[0].reason}")
        message.set_content(letter.text)
        message.add_alternative(letter.page, subtype="html")
        return await hand_in(self._server, message)
