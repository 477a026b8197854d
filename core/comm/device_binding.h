// Which device each worker of a run takes. All of them decide alike, from a table of what each of them sees:
// launchers show every rank the devices of its node, or its own ones only, and place ranks on nodes in any
// order.
#ifndef DR_CORE_COMM_DEVICE_BINDING_H
#define DR_CORE_COMM_DEVICE_BINDING_H

#include <stdint.h>

#include "core/comm/collective.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { DR_SEEN_DEVICES = 16 }; // of one worker, at most

typedef struct dr_seen_devices {
    int32_t node;         // the same for the workers of one machine
    int32_t n;            // 0: the worker has none, or wants none
    int64_t told_machine; // what its collective library is told that this machine is, 0: nothing; 48 bits
    // Of device 0, 1, … of this worker: where it is on the bus, the same for all workers of the machine. Two
    // parts of one device are one device.
    int64_t bus_id[DR_SEEN_DEVICES]; // domain << 16 | bus << 8 | device
} dr_seen_devices;

typedef struct dr_device_binding {
    int32_t device;         // among those that the worker sees; -1: none
    int32_t n_sharing;      // workers that take this device, itself included; 0 without a device
    int32_t n_here;         // workers of its node, itself included
    int32_t n_devices_here; // that these see, each counted once
    int32_t n_without;      // of all workers: those without a device
    int32_t n_shared;       // and those that do not have their device for themselves
    int32_t n_clashing;     // and those whose device is another one's to a library that is told so
} dr_device_binding;

// out [n]: each worker takes the first of its devices that fewest of its node's workers take before it; those
// that see fewest choose first, and else the order is the table's. Workers that all see the same devices
// take them in turn.
void dr_devices_bind(const dr_seen_devices *seen, int n, dr_device_binding *out);

// Each worker's row to all: all [collective->size], the own one filled. Called by all workers together.
dr_status dr_devices_exchange(dr_collective *collective, dr_seen_devices *all);

#ifdef __cplusplus
}
#endif
#endif
