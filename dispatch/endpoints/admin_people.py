"""What admins decide about mechanics and workshops, told to every node at once."""

from typing import Annotated

from msgspec import Meta, Struct

from dispatch import admin_people
from dispatch.admin_people import Applicant, ApplicationStatus, Retired, WorkshopStatus
from dispatch.endpoints.area import ADMIN, Area, Asked, Path

_Limit = Annotated[int, Meta(ge=1, le=100)]
_Offset = Annotated[int, Meta(ge=0, le=1_000_000)]


class Mechanics(Struct, frozen=True):
    """Which mechanics are listed; without a status all."""

    status: ApplicationStatus | None = None
    limit: _Limit = 20
    offset: _Offset = 0


class Workshops(Struct, frozen=True):
    """Which workshops are listed; without a status all."""

    status: WorkshopStatus | None = None
    limit: _Limit = 20
    offset: _Offset = 0


class AdminPeople(Area):
    """For admins, about people and workshops."""

    def paths(self) -> list[Path]:
        """Every path of the area."""
        mechanic = "/api/admin/mechanics/{id}"
        return [
            Path(
                "GET",
                "/api/admin/mechanics",
                self.mechanics,
                roles=ADMIN,
                query=Mechanics,
                answer=admin_people.Applicants,
            ),
            Path(
                "POST",
                f"{mechanic}/approve",
                self.approve,
                roles=ADMIN,
                answer=Applicant,
                errors=("not_found",),
            ),
            Path(
                "POST",
                f"{mechanic}/reject",
                self.reject,
                roles=ADMIN,
                answer=Applicant,
                errors=("not_found", "not_pending"),
            ),
            Path(
                "POST",
                f"{mechanic}/deactivate",
                self.deactivate,
                roles=ADMIN,
                answer=Applicant,
                errors=("not_found",),
            ),
            Path("DELETE", mechanic, self.delete, roles=ADMIN, errors=("not_found",)),
            Path(
                "GET",
                "/api/admin/workshops",
                self.workshops,
                roles=ADMIN,
                query=Workshops,
                answer=admin_people.VettedWorkshops,
            ),
            Path(
                "POST",
                "/api/admin/workshops/{id}/approve",
                self.approve_workshop,
                roles=ADMIN,
                answer=admin_people.VettedWorkshop,
                errors=("not_found",),
            ),
        ]

    async def mechanics(self, asked: Asked) -> admin_people.Applicants:
        """Mechanics by the status of their application, the latest sign-up first."""
        part: Mechanics = asked.query
        return await admin_people.mechanics(self.node.pool, part.status, part.limit, part.offset)

    async def approve(self, asked: Asked) -> Applicant:
        """A mechanic may work: where she is connected her offers come at once (R10).

        So she may again after a rejection or a deactivation.
        """
        mechanic_id = asked.id
        approved = await admin_people.approve(self.node.pool, asked.caller.user_id, mechanic_id)
        await self.node.dispatcher.tell_changed(mechanic_id)
        return approved

    async def reject(self, asked: Asked) -> Applicant:
        """A pending application is refused."""
        return await admin_people.reject(self.node.pool, asked.caller.user_id, asked.id)

    async def deactivate(self, asked: Asked) -> Applicant:
        """A mechanic is kept out, on every node at once, until she is approved again (P6)."""
        retired = await admin_people.deactivate(self.node.pool, asked.caller.user_id, asked.id)
        await self._tell(retired)
        return retired.mechanic

    async def delete(self, asked: Asked) -> None:
        """A mechanic is gone for good (P6); what she did and earned stays on record."""
        await self._tell(await admin_people.delete(self.node.pool, asked.caller.user_id, asked.id))

    async def _tell(self, retired: Retired) -> None:
        """Her sockets close; what she has not started goes to others, what runs ends."""
        mechanic_id = retired.mechanic.mechanic_id
        self.node.revoke(mechanic_id, retired.token_epoch)
        await self.node.dispatcher.retire(mechanic_id)

    async def workshops(self, asked: Asked) -> admin_people.VettedWorkshops:
        """Workshops by their status, the latest sign-up first."""
        part: Workshops = asked.query
        return await admin_people.workshops(self.node.pool, part.status, part.limit, part.offset)

    async def approve_workshop(self, asked: Asked) -> admin_people.VettedWorkshop:
        """A workshop can be booked from now on, and may invite mechanics."""
        return await admin_people.approve_workshop(self.node.pool, asked.caller.user_id, asked.id)
