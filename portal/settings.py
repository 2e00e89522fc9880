"""All settings, from the environment. With nothing set: SQLite under var/, no Redis, secrets made on first use.

`LICENTIA_ENV` is `embedded` (default), `production` or `test`. What production refuses stands in `checks`.
"""

import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import environ
import structlog
from csp.constants import NONCE, NONE, SELF
from django.core.exceptions import ImproperlyConfigured
from django.templatetags.static import static

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()

LICENTIA_ENV = env.str("LICENTIA_ENV", default="embedded")
if LICENTIA_ENV not in ("embedded", "production", "test"):
    raise ImproperlyConfigured(f"LICENTIA_ENV is '{LICENTIA_ENV}'. Set it to embedded, production or test.")
PRODUCTION = LICENTIA_ENV == "production"
VAR_DIR = Path(env.str("VAR_DIR", default=str(BASE_DIR / "var"))).resolve()


def _kept_secret(name: str, length: int = 50) -> str:
    """Return a secret kept in a private file under var/, made on first use (embedded only)."""
    path = VAR_DIR / name
    VAR_DIR.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # Written whole and then named, so that nobody ever reads half of it; the first of several stays.
        draft = path.with_name(f".{name}.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(length))
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()


DEBUG = False
SECRET_KEY = env.str("SECRET_KEY", default="") or ("" if PRODUCTION else _kept_secret("secret_key"))
if PRODUCTION and not SECRET_KEY:
    # Django refuses an empty key before any check can speak; the check of ours names the mend.
    SECRET_KEY = "unset"  # noqa: S105
PUBLIC_URL = env.str("PUBLIC_URL", default="http://127.0.0.1:8000").rstrip("/")
PUBLIC_HOST = urlsplit(PUBLIC_URL).hostname or ""
LOOPBACK = ["127.0.0.1", "localhost", "[::1]"]
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=[] if PRODUCTION else [PUBLIC_HOST, *LOOPBACK])
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]
TRUSTED_PROXIES: list[str] = env.list("TRUSTED_PROXIES", default=[])

# --- key ring ---------------------------------------------------------------------------------------
KEYRING = env.str("KEYRING", default="")
KEYRING_FILE = env.str("KEYRING_FILE", default="" if PRODUCTION else str(VAR_DIR / "keyring.json"))
KEYRING_PROVIDER = env.str("KEYRING_PROVIDER", default="")  # a class of one's own; see `licensing.crypto.Provider`
KEYRING_CREATE = not PRODUCTION  # embedded and tests make a ring on first use; production never does

# --- audit checkpoints ------------------------------------------------------------------------------
# Where the signed checkpoints of the audit chain go, besides the database; see docs/audit.md.
AUDIT_CHECKPOINT_FILE = env.str(
    "AUDIT_CHECKPOINT_FILE", default="" if LICENTIA_ENV == "test" else str(VAR_DIR / "audit-checkpoints.jsonl")
)
AUDIT_CHECKPOINT_MAIL: list[str] = env.list("AUDIT_CHECKPOINT_MAIL", default=[])  # addresses
AUDIT_CHECKPOINT_MAIL_MINUTES = env.int("AUDIT_CHECKPOINT_MAIL_MINUTES", default=60)
AUDIT_CHECKPOINT_WEBHOOK = env.str("AUDIT_CHECKPOINT_WEBHOOK", default="")

# --- applications -----------------------------------------------------------------------------------
INSTALLED_APPS = [
    "portal",
    "billing",
    "licensing",
    "unfold.apps.BasicAppConfig",  # without its own site: ours is `portal.staff_site.StaffSite`
    "unfold.contrib.filters",
    "unfold.contrib.simple_history",
    "portal.staff.StaffAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "simple_history",
    "allauth",
    "allauth.account",
    "axes",
    "csp",
    "django_structlog",
    "django_prometheus",
]

MIDDLEWARE = [
    "portal.middleware.AnswerMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "simple_history.middleware.HistoryRequestMiddleware",
    "axes.middleware.AxesMiddleware",
]

ROOT_URLCONF = "portal.urls"
WSGI_APPLICATION = "portal.wsgi.application"
AUTH_USER_MODEL = "portal.User"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

# --- database ---------------------------------------------------------------------------------------
DATABASE_URL = env.str("DATABASE_URL", default=f"sqlite:///{VAR_DIR / 'licentia.sqlite3'}")


def _database(url: str) -> dict[str, Any]:
    """Return Django's settings for the database at `url`."""
    config: dict[str, Any] = environ.Env.db_url_config(url)
    options: dict[str, Any] = config.setdefault("OPTIONS", {})
    if config["ENGINE"].endswith("sqlite3"):
        Path(config["NAME"]).parent.mkdir(parents=True, exist_ok=True)
        options |= {
            # Read-then-write in a deferred transaction fails with "database is locked" (measured: R6, R7).
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            # recursive_triggers: INSERT OR REPLACE must fire the delete guards (measured: R8).
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA recursive_triggers=ON;",
        }
        config["TEST"] = {"NAME": str(Path(config["NAME"]).with_suffix(".test.sqlite3"))}
        config["CONN_MAX_AGE"] = 600
    else:
        options.setdefault("application_name", "licentia")
        options["options"] = (
            "-c statement_timeout=30s -c lock_timeout=10s -c idle_in_transaction_session_timeout=60s -c timezone=UTC"
        )
        config["CONN_MAX_AGE"] = 600
        config["CONN_HEALTH_CHECKS"] = True
    return config


DATABASES = {"default": _database(DATABASE_URL)}

# --- cache, broker ----------------------------------------------------------------------------------
REDIS_URL = env.str("REDIS_URL", default="")
REDIS_KEY_PREFIX = env.str("REDIS_KEY_PREFIX", default="licentia")
CACHES: dict[str, dict[str, Any]] = {
    "default": (
        {
            "BACKEND": "portal.cache.RedisOrHere",
            "LOCATION": REDIS_URL,
            "KEY_PREFIX": REDIS_KEY_PREFIX,
            "OPTIONS": {"socket_timeout": 0.25, "socket_connect_timeout": 0.25},
        }
        if REDIS_URL
        else {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    )
}

CELERY_BROKER_URL = env.str("CELERY_BROKER_URL", default="") or REDIS_URL or "filesystem://"
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_SERIALIZER = CELERY_RESULT_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_RESULT_ACCEPT_CONTENT = ["json"]
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_TASK_TIME_LIMIT = 600
CELERY_TASK_SOFT_TIME_LIMIT = 540
# At a stop a worker finishes what it has in hand; what it cannot finish goes back to the broker, also when idle.
CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT = 30.0
CELERY_WORKER_ENABLE_SOFT_SHUTDOWN_ON_IDLE = True
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = True
CELERY_TIMEZONE = "UTC"
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BEAT_SCHEDULE_FILENAME = str(VAR_DIR / "celerybeat-schedule")
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
if CELERY_BROKER_URL.startswith("filesystem"):
    _broker = VAR_DIR / "broker"
    for _folder in ("messages", "done", "control"):
        (_broker / _folder).mkdir(parents=True, exist_ok=True)
    CELERY_BROKER_TRANSPORT_OPTIONS: dict[str, Any] = {
        "data_folder_in": str(_broker / "messages"),
        "data_folder_out": str(_broker / "messages"),
        "processed_folder": str(_broker / "done"),
        "control_folder": str(_broker / "control"),
        "store_processed": False,
    }
else:
    # Longer than the longest task, or Redis hands a running task to a second worker.
    CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 3600, "global_keyprefix": f"{REDIS_KEY_PREFIX}:"}
    CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS = {"visibility_timeout": 3600}
    CELERY_VISIBILITY_TIMEOUT = 3600

# Every job is a reconciler or works off the outbox: a message lost costs one beat, nothing else. A daily job is
# asked every quarter of an hour whether its day is done (`sweeps.beat`): what was missed at night is done by day.
# `expires` keeps a backlog of beats from piling up while no worker runs.
CELERY_BEAT_SCHEDULE: dict[str, dict[str, Any]] = {
    "expiration-sweep": {"task": "licensing.sweep", "schedule": 30.0, "options": {"expires": 60}},
    "lease-reclaim": {"task": "licensing.reclaim_leases", "schedule": 30.0, "options": {"expires": 60}},
    "reservations": {"task": "licensing.lapse_reservations", "schedule": 30.0, "options": {"expires": 60}},
    "scheduled-changes": {"task": "licensing.carry_out_changes", "schedule": 10.0, "options": {"expires": 30}},
    "outbox-relay": {"task": "licensing.relay_outbox", "schedule": 10.0, "options": {"expires": 30}},
    "audit-chain": {"task": "licensing.chain_audit", "schedule": 1.0, "options": {"expires": 5}},
    "audit-verify": {"task": "licensing.verify_audit", "schedule": 900.0, "options": {"expires": 900}},
    "nonces": {"task": "licensing.forget_nonces", "schedule": 60.0, "options": {"expires": 60}},
    "anomaly-rules": {"task": "licensing.evaluate_rules", "schedule": 20.0, "options": {"expires": 40}},
    "usage-rollup": {"task": "billing.roll_up", "schedule": 30.0, "options": {"expires": 60}},
    "usage-follow-up": {"task": "billing.follow_up_usage", "schedule": 60.0, "options": {"expires": 60}},
    "usage-partitions": {
        "task": "billing.make_partitions",
        "schedule": 900.0,
        "options": {"expires": 900},
    },
    "usage-reconcile": {
        "task": "billing.reconcile",
        "schedule": 900.0,
        "options": {"expires": 900},
    },
    "usage-ids": {
        "task": "billing.forget_usage_ids",
        "schedule": 900.0,
        "options": {"expires": 900},
    },
    "retention": {
        "task": "licensing.apply_retention",
        "schedule": 900.0,
        "options": {"expires": 900},
    },
    "statement-refresh": {"task": "billing.refresh_statements", "schedule": 3600.0, "options": {"expires": 3600}},
    "statement-close": {"task": "billing.close_statements", "schedule": 3600.0, "options": {"expires": 3600}},
    "gateway-invoices": {"task": "billing.send_invoices", "schedule": 60.0, "options": {"expires": 60}},
    "gateway-reconciliation": {
        "task": "billing.reconcile_payments",
        "schedule": 3600.0,
        "options": {"expires": 3600},
    },
    "expiry-reminders": {"task": "licensing.remind", "schedule": 900.0, "options": {"expires": 900}},
    "dead-installations": {"task": "licensing.let_dead_go", "schedule": 900.0, "options": {"expires": 900}},
    "key-ring-check": {"task": "licensing.check_key_ring", "schedule": 900.0, "options": {"expires": 900}},
    "dunning": {"task": "billing.dun", "schedule": 900.0, "options": {"expires": 900}},
}

# --- sign-in ----------------------------------------------------------------------------------------
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
    "allauth.account.auth_backends.AuthenticationBackend",
]
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
if LICENTIA_ENV == "test":
    PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {
        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
        "OPTIONS": {"min_length": 15},
    },
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
]
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*", "password2*"]
ACCOUNT_EMAIL_VERIFICATION = "none"  # staff and owners add people by their address
ACCOUNT_EMAIL_SUBJECT_PREFIX = "Licentia: "
ACCOUNT_SESSION_REMEMBER = True  # for SESSION_COOKIE_AGE, without asking
ACCOUNT_PREVENT_ENUMERATION = True
ACCOUNT_ADAPTER = "portal.access.AccountAdapter"
ACCOUNT_REAUTHENTICATION_TIMEOUT = 300
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "portal:licenses"
ACCOUNT_LOGOUT_REDIRECT_URL = "account_login"
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = 0.25  # hours
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_CLIENT_IP_CALLABLE = "portal.middleware.client_address"
AXES_USERNAME_CALLABLE = "portal.signin.name_of"
AXES_LOCKOUT_TEMPLATE = "429.html"
AXES_VERBOSE = False

SESSION_COOKIE_AGE = 12 * 3600
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = PRODUCTION
if PRODUCTION:
    SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = "__Host-session", "__Host-csrf"

# --- transport --------------------------------------------------------------------------------------
SECURE_HSTS_SECONDS = 31_536_000 if PRODUCTION else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = PRODUCTION
SECURE_SSL_REDIRECT = PRODUCTION
# The API refuses plain http instead of redirecting it: a redirected request has already leaked its key
# (OWASP ASVS 4.1.2). Health checks come from inside. `portal.middleware` does both.
SECURE_REDIRECT_EXEMPT = [r"^api/", r"^health/", r"^metrics$"]
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if TRUSTED_PROXIES else None
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "script-src": [SELF, NONCE],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "object-src": [NONE],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
        "form-action": [SELF],
    }
}
DATA_UPLOAD_MAX_MEMORY_SIZE = 1_048_576

# --- API --------------------------------------------------------------------------------------------
REST_FRAMEWORK: dict[str, Any] = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["licensing.api.auth.CredentialAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["licensing.api.auth.HasScope"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["licensing.api.wire.StrictJSONParser"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "licensing.api.wire.JSONOnly",
    "DEFAULT_PAGINATION_CLASS": "licensing.api.wire.CursorPages",
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "portal.api.problem",
    "UNAUTHENTICATED_USER": None,
    "COERCE_DECIMAL_TO_STRING": True,
}
SPECTACULAR_SETTINGS: dict[str, Any] = {
    "TITLE": "Licentia API",
    "DESCRIPTION": "Licenses: issue, validate, enforce. Errors are RFC 9457 problems; see docs/api.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_ADD_EXPLICIT_BLANK_NULL_CHOICE": False,
    "ENUM_NAME_OVERRIDES": {
        "RevisionState": "licensing.states.RevisionState",
        "StatementState": "billing.states.StatementState",
        "LicenseStatus": "licensing.states.LicenseStatus",
        "EndpointState": [("enabled", "Enabled"), ("disabled", "Disabled")],
    },
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "portal.api.document_common_answers",
    ],
    "SERVE_PERMISSIONS": [],
    "SERVE_AUTHENTICATION": [],
}
# Requests a second (sustained, burst), per caller of each kind; see `licensing.throttles`.
THROTTLES: dict[str, tuple[float, int]] = {
    "address": (env.float("THROTTLE_ADDRESS", default=20.0), env.int("THROTTLE_ADDRESS_BURST", default=60)),
    "license": (env.float("THROTTLE_LICENSE", default=10.0), env.int("THROTTLE_LICENSE_BURST", default=60)),
    "credential": (
        env.float("THROTTLE_CREDENTIAL", default=100.0),
        env.int("THROTTLE_CREDENTIAL_BURST", default=400),
    ),
}

# --- alerts -----------------------------------------------------------------------------------------
# Who is told of anomalies, besides the staff who hold the right to be.
ALERT_EMAILS: list[str] = env.list("ALERT_EMAILS", default=[])

# --- statements -------------------------------------------------------------------------------------
VENDOR_NAME = env.str("VENDOR_NAME", default="Licentia")  # who bills
VENDOR_ADDRESS = env.str("VENDOR_ADDRESS", default="").replace("\\n", "\n")
STATEMENT_GRACE_DAYS = env.int("STATEMENT_GRACE_DAYS", default=3)  # how long a draft still takes late events
STATEMENT_PAYMENT_DAYS = env.int("STATEMENT_PAYMENT_DAYS", default=14)

# --- payments ---------------------------------------------------------------------------------------
# Off with none of these; see docs/payments.md.
STRIPE_SECRET_KEY = env.str("STRIPE_SECRET_KEY", default="")
STRIPE_WEBHOOK_SECRET = env.str("STRIPE_WEBHOOK_SECRET", default="")
STRIPE_API_BASE = env.str("STRIPE_API_BASE", default="").rstrip("/")  # another address than Stripe's: for tests
STRIPE_METER_EVENTS = env.bool("STRIPE_METER_EVENTS", default=False)
# Days after a statement was due: of each reminder, and of the hold (0: none).
DUNNING_REMINDER_DAYS: list[int] = env.list("DUNNING_REMINDER_DAYS", cast=int, default=[3, 7, 14])
DUNNING_HOLD_DAYS = env.int("DUNNING_HOLD_DAYS", default=21)

# --- webhooks out -----------------------------------------------------------------------------------
# Whether endpoints may be on this very machine: for development, refused in production.
WEBHOOKS_TO_LOOPBACK = env.bool("WEBHOOKS_TO_LOOPBACK", default=LICENTIA_ENV == "embedded")

# --- mail, static, logs -----------------------------------------------------------------------------
EMAIL_URL = env.str("EMAIL_URL", default="" if PRODUCTION else f"filemail:///{VAR_DIR / 'mail'}")
if EMAIL_URL:
    _mail = environ.Env.email_url_config(EMAIL_URL)
    EMAIL_BACKEND = _mail["EMAIL_BACKEND"]
    EMAIL_HOST, EMAIL_PORT = _mail.get("EMAIL_HOST") or "localhost", _mail.get("EMAIL_PORT") or 25
    EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = _mail.get("EMAIL_HOST_USER"), _mail.get("EMAIL_HOST_PASSWORD")
    EMAIL_USE_TLS, EMAIL_USE_SSL = _mail.get("EMAIL_USE_TLS", False), _mail.get("EMAIL_USE_SSL", False)
    EMAIL_FILE_PATH = _mail.get("EMAIL_FILE_PATH") or str(VAR_DIR / "mail")
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = env.str("DEFAULT_FROM_EMAIL", default="licenses@localhost")

# `manage.py serve` turns it on: each of its workers takes a core of its own.
WEB_OWN_CORE = env.bool("WEB_OWN_CORE", default=False)

STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "staticfiles" if PRODUCTION else VAR_DIR / "staticfiles"
STATIC_ROOT.mkdir(parents=True, exist_ok=True)
STATICFILES_DIRS = [BASE_DIR / "static"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"
        if PRODUCTION
        else "django.contrib.staticfiles.storage.StaticFilesStorage"
    },
}
WHITENOISE_USE_FINDERS = not PRODUCTION

LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False
DATE_FORMAT, TIME_FORMAT, DATETIME_FORMAT = "j M Y", "H:i", "j M Y, H:i"

DJANGO_STRUCTLOG_CELERY_ENABLED = False
SILENCED_SYSTEM_CHECKS = ["security.W021"] if not PRODUCTION else []

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"redact": {"()": "portal.logs.RedactingFilter"}},
    "formatters": {
        "line": {
            "()": structlog.stdlib.ProcessorFormatter,
            "processor": structlog.processors.JSONRenderer()
            if PRODUCTION
            else structlog.dev.ConsoleRenderer(colors=False),
            "foreign_pre_chain": [
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
        }
    },
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["redact"]},
    },
    "root": {"handlers": ["console"], "level": env.str("LOG_LEVEL", default="INFO")},
    "loggers": {
        "django.server": {"handlers": ["console"], "propagate": False},
        "django.request": {"level": "ERROR"},
    },
}
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)

UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "Licentia",
    "SITE_HEADER": "Licentia",
    "SITE_SUBHEADER": "Staff",
    "SITE_SYMBOL": "key",
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("img/logo.svg")},
    ],
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "BORDER_RADIUS": "6px",
    "STYLES": [lambda request: static("admin-extra/staff.css")],
    "SCRIPTS": [lambda request: static("admin-extra/staff.js")],
    "SIDEBAR": {"navigation": "portal.staff_site.navigation"},
    "COLORS": {
        "primary": {
            "50": "#eef6f8",
            "100": "#d5e9ee",
            "200": "#aed4de",
            "300": "#7db8c8",
            "400": "#4fa0b6",
            "500": "#3790a9",
            "600": "#1f6379",
            "700": "#1c5164",
            "800": "#1b4453",
            "900": "#1a3a47",
            "950": "#0c2530",
        }
    },
}
