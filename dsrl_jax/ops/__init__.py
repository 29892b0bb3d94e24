"""Operations that decide speed: each fast form has a plain one beside it, tested equal."""
