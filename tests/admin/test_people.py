"""Users and groups: made and changed by superusers, recorded, never deleted."""

import pytest
from django.contrib.auth.models import Group, Permission
from django.test import Client
from django.urls import reverse

from licensing.models import AuditEntry
from portal.models import User
from tests.admin.conftest import adding, last_entry, page, sign_in, text_of
from tests.factories import PASSWORD, make_user, opened

pytestmark = pytest.mark.django_db


def rights(user: User, **changes: object) -> dict[str, object]:
    values = {"email": user.email, "first_name": "", "last_name": "", "is_active": "on", "groups": []} | changes
    return {name: value for name, value in values.items() if value is not None}


def test_makes_a_person_who_can_sign_in(staff: Client) -> None:
    response = staff.post(adding(User), {
        "email": "New@Example.com", "password1": PASSWORD, "password2": PASSWORD, "usable_password": "true",
    })  # fmt: skip

    assert response.status_code == 302
    user = User.objects.get(email="new@example.com")
    assert user.check_password(PASSWORD)
    entry = last_entry()
    assert (entry.action, entry.object_id, entry.after["is_staff"]) == ("user.created", str(user.pk), False)
    assert "new@example.com" not in str(entry.after)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"password1": "short", "password2": "short"}, "too short"),
        ({"email": "taken@example.com"}, "already"),
        ({"password2": "something else entirely"}, "match"),
    ],
)
def test_a_bad_person_is_refused(staff: Client, given: dict[str, str], said: str) -> None:
    make_user(email="taken@example.com")
    values = {"email": "new@example.com", "password1": PASSWORD, "password2": PASSWORD} | given

    response = staff.post(adding(User), values)

    assert response.status_code == 200
    assert said in text_of(response)


def test_makes_somebody_staff_in_a_group_and_records_it(staff: Client) -> None:
    user, group = make_user(), Group.objects.create(name="Support")

    response = staff.post(page(user), rights(user, is_staff="on", groups=[group.pk]))

    assert response.status_code == 302
    user.refresh_from_db()
    assert user.is_staff
    entry = last_entry()
    assert entry.action == "user.changed"
    assert entry.before == {"is_staff": False, "groups": []}
    assert entry.after == {"is_staff": True, "groups": ["Support"]}
    assert opened(entry).actor_label == staff.user.email  # type: ignore[attr-defined]


def test_sets_a_password_and_records_it(staff: Client) -> None:
    user = make_user()
    url = reverse("admin:auth_user_password_change", args=[user.pk])
    new = "another horse, another battery"

    assert staff.get(url).status_code == 200
    assert staff.post(url, {"password1": new, "password2": new, "usable_password": "true"}).status_code == 302
    user.refresh_from_db()
    assert user.check_password(new)
    assert last_entry().action == "user.password_set"
    assert new not in str(AuditEntry.objects.values_list("after", "before"))


def test_changes_a_groups_permissions_and_records_it(staff: Client) -> None:
    group = Group.objects.create(name="Support")
    permission = Permission.objects.get(codename="hold_license")

    staff.post(page(group), {"name": "Support", "permissions": [permission.pk]})

    assert list(group.permissions.all()) == [permission]
    assert (last_entry().action, last_entry().after) == ("group.changed", {"permissions": ["hold_license"]})


def test_only_a_superuser_changes_people() -> None:
    client = sign_in(
        "portal.view_user", "portal.change_user", "portal.add_user", "auth.change_group", "auth.view_group"
    )
    user, group = make_user(), Group.objects.create(name="Support")

    assert client.get(page(user)).status_code == 200
    assert client.post(page(user), rights(user, is_superuser="on")).status_code == 403
    assert client.get(adding(User)).status_code == 403
    assert client.post(page(group), {"name": "Mine"}).status_code == 403
    assert client.get(reverse("admin:auth_user_password_change", args=[user.pk])).status_code == 403
    user.refresh_from_db()
    assert not user.is_superuser


def test_the_password_hash_is_not_shown(staff: Client) -> None:
    user = make_user()

    assert user.password not in text_of(staff.get(page(user)))
