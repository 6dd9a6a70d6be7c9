# possync: build with PGXS, see README.md.
#
#	make [PG_CONFIG=...]		build
#	make install				into the installation that PG_CONFIG belongs to
#	make installcheck			regression and isolation tests, on a running server
#	make check [TESTS="..."]	every test, on throw-away clusters (scripts/check)
#	make demo					a head office and a till, on throw-away clusters
#	make indent, indent-check	layout of the C files

PG_CONFIG ?= pg_config
export PG_CONFIG

# These two install what is missing first, so they must not need pg_config.
ifneq ($(filter check demo,$(MAKECMDGOALS)),)

check:
	@scripts/check $(TESTS)

demo:
	@scripts/demo

else

EXTENSION = possync
MODULE_big = possync
DATA = $(wildcard sql/possync--*.sql)
OBJS = $(sort $(patsubst %.c,%.o,$(wildcard src/*.c)))
PGFILEDESC = "possync - keeps many small databases in step with a master"

REGRESS := $(sort $(patsubst test/sql/%.sql,%,$(wildcard test/sql/*.sql)))
REGRESS_OPTS = --inputdir=test
ISOLATION := $(sort $(patsubst test/specs/%.spec,%,$(wildcard test/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test --load-extension=possync
EXTRA_CLEAN = $(wildcard src/*.d) .built-for results output_iso \
	regression.diffs regression.out

PG_CPPFLAGS = -I$(libpq_srcdir) $(shell curl-config --cflags) -MMD -MP
# Warnings are errors in make check only: another compiler has others.
PG_CFLAGS = -Wall -Wextra $(if $(WERROR),-Werror) \
	-Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers

# Only what PostgreSQL looks up is exported; PostgreSQL 15 would export all.
SHLIB_LINK = $(libpq) $(shell curl-config --libs) -Wl,--version-script=src/exports.map

# Minor releases brought this check of connection options, so no version tells.
ifneq ($(shell grep -l libpqsrv_check_proxy_conninfo_opts \
	"$$($(PG_CONFIG) --includedir-server)/libpq/libpq-be-fe-helpers.h" 2>/dev/null),)
PG_CPPFLAGS += -DHAVE_PROXY_CHECK
endif

# No bitcode: nothing here is worth inlining into a query.
override with_llvm = no

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# Objects depend on the headers they saw, on flags and on the version of
# PostgreSQL.
-include $(wildcard src/*.d)

BUILD_FOR := $(shell $(PG_CONFIG) --version)
ifneq ($(BUILD_FOR),$(shell cat .built-for 2>/dev/null))
$(shell echo '$(BUILD_FOR)' >.built-for)
endif
$(OBJS): .built-for Makefile
possync.so: src/exports.map

indent:
	scripts/indent

indent-check:
	scripts/indent --check

.PHONY: indent indent-check

endif

.PHONY: check demo
