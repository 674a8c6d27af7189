"""The two people that whoever looks at the pages may be: nobody else plays them.

One job: see that a customer and a mechanic are there, who is approved and the customer's favourite,
however often that is asked. Imports `api` and `people`. It fails with `ApiError`.
"""

from loadtest.api import Api, ApiError
from loadtest.people import City, Member

CUSTOMER = ("Vera Visitor", "vera@visitors.example")
MECHANIC = ("Max Visitor", "max@visitors.example")


async def settle(api: Api, city: City) -> tuple[Member, Member]:
    """The customer and the mechanic; they have the password of the city's admin."""
    password = city.admin.password
    customer_token, customer = await _arrive(api, "customer", *CUSTOMER, password)
    _, mechanic = await _arrive(api, "mechanic", *MECHANIC, password)
    await api.approve(await api.login(city.admin.email, city.admin.password), mechanic.id)
    await api.add_favorite(customer_token, mechanic.id)
    return customer, mechanic


async def _arrive(api: Api, role: str, name: str, email: str, password: str) -> tuple[str, Member]:
    try:
        answer = await api.sign_up(role, name, email, password)
    except ApiError as refusal:
        if refusal.code != "email_taken":
            raise
        answer = await api.identify(email, password)
    return answer["token"], Member(answer["user_id"], name, email, password)
