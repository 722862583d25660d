/* SPDX-License-Identifier: MIT */
/*
 * Slots: taken, given back, and what is added to one after that.
 *
 * A record names its slot by value: slot | generation << 32.
 */
#ifndef KT_STEP_SLOTS_H
#define KT_STEP_SLOTS_H

#include "types.h"

static uint32_t slot_of(uint64_t value)
{
	return (uint32_t)value;
}

static uint64_t *slot_words(Region *region, uint32_t slot)
{
	return (uint64_t *)(region->base + region->slots_offset +
			    (Py_ssize_t)slot * region->slot_bytes);
}

/* 0 is left out: a slot that is being zeroed then fits no cell. */
static uint32_t generation_after(uint32_t generation)
{
	return generation + 1 ? generation + 1 : 1;
}

static void set_generation(Region *region, uint32_t slot, uint32_t generation)
{
	__atomic_store_n((uint32_t *)slot_words(region, slot), generation, __ATOMIC_RELEASE);
}

/* From here on the slot fits no cell that is published now. */
static void retire_generation(Region *region, uint64_t value)
{
	set_generation(region, slot_of(value),
		       generation_after((uint32_t)(value >> GENERATION_SHIFT)));
}

/* What a closed slot got since. */
static void add_residual(Region *region, uint32_t slot, uint64_t *sums)
{
	PyObject *copy = region->copies[slot];
	uint64_t *words = slot_words(region, slot), *copied;
	Py_ssize_t i;

	if (region->sent[slot])
		sums[TCP_RETRANSMITS] += words[TCP_RETRANSMITS] - (region->sent[slot] - 1);
	if (!copy)
		return;
	copied = copy == Py_None ? NULL : (uint64_t *)PyBytes_AsString(copy);
	for (i = 1; i < region->slot_bytes / 8; i++)
		sums[i] += words[i] - (copied ? copied[i] : 0);
}

/* 0 when all are taken. Slots are reused first-in first-out, so that one rests
 * as long as possible, but from a small set that stays in the caches. */
static uint32_t choose_slot(Region *region)
{
	uint32_t slot;

	if (!region->memory)
		return 0;
	if (region->resting <= REST_SLOTS && region->next_fresh < region->slots)
		return region->next_fresh++;
	if (!region->resting) {
		region->slots_exhausted++;
		return 0;
	}
	slot = region->rest[region->first];
	region->first = (region->first + 1) % (uint32_t)region->slots;
	region->resting--;
	add_residual(region, slot, region->late);
	region->sent[slot] = 0;
	Py_CLEAR(region->copies[slot]);
	return slot;
}

/* The value of a slot that is zeroed and in use from now on, or 0. */
static uint64_t take_slot(Region *region)
{
	uint32_t slot = choose_slot(region), generation;

	if (!slot)
		return 0;
	generation = generation_after(*(uint32_t *)slot_words(region, slot));
	memset(slot_words(region, slot), 0, (size_t)region->slot_bytes);
	set_generation(region, slot, generation);
	region->slots_open++;
	return slot | (uint64_t)generation << GENERATION_SHIFT;
}

/* Steals the reference to `copy`. */
static void give_slot(Region *region, uint64_t value, PyObject *copy, uint64_t sent)
{
	uint32_t slot = slot_of(value);

	region->rest[(region->first + region->resting++) % (uint32_t)region->slots] = slot;
	region->copies[slot] = copy;
	region->sent[slot] = sent;
	region->slots_open--;
}

#endif
