"""How a service that sends mail reaches the mail server. One setting serves them all: `SMTP_HOST`.

Where that is not set, each also answers to the service's own name (`ALERTING_SMTP_HOST`).
"""

from pydantic import Field, SecretStr

from libs.common.mail import MailServer, Security
from libs.common.settings import ServiceSettings


class MailSettings(ServiceSettings):
    """The settings of a service that sends mail."""

    public_url: str = Field("http://localhost:8000/", validation_alias="PUBLIC_URL")
    """The console's address, for the links in messages."""

    smtp_host: str = Field("", validation_alias="SMTP_HOST")
    """The mail server. Empty: no mail is sent."""
    smtp_port: int = Field(587, ge=1, le=65535, validation_alias="SMTP_PORT")
    smtp_security: Security = Field(Security.STARTTLS, validation_alias="SMTP_SECURITY")
    """starttls, tls, or none for a server on the same machine."""
    smtp_username: str | None = Field(None, validation_alias="SMTP_USERNAME")
    smtp_password: SecretStr | None = Field(None, validation_alias="SMTP_PASSWORD")
    smtp_sender: str = Field("iiot@localhost.localdomain", validation_alias="SMTP_SENDER")
    """The address in From."""
    smtp_sender_name: str = Field("INSA IIoT Platform", validation_alias="SMTP_SENDER_NAME")

    def mail_server(self) -> MailServer | None:
        """Return where mail is handed in; None if there is to be no mail."""
        if not self.smtp_host:
            return None
        password = self.smtp_password
        return MailServer(
            host=self.smtp_host,
            port=self.smtp_port,
            sender=self.smtp_sender,
            sender_name=self.smtp_sender_name,
            security=self.smtp_security,
            username=self.smtp_username or None,
            password=password.get_secret_value() if password else None,
        )
