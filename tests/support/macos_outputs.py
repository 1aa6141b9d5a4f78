"""What macOS's own tools printed on real machines, with where each output was published.

Serial numbers and identifiers that their authors left in are left out here.
"""

from __future__ import annotations

# https://github.com/archspec/archspec/issues/201 (M4 Pro, macOS 15); brand and model as the same
# machine's `sysctl` names them.
SYSCTL_M4_PRO = """\
hw.model: Mac16,11
machdep.cpu.brand_string: Apple M4 Pro
hw.memsize: 25769803776
hw.physicalcpu: 12
hw.perflevel0.physicalcpu: 8
hw.perflevel0.name: Performance
hw.perflevel1.physicalcpu: 4
hw.perflevel1.name: Efficiency
"""

# https://github.com/Dr-Noob/cpufetch/issues/139 (M1 Pro, macOS 12, levels without names)
SYSCTL_M1_PRO = """\
hw.physicalcpu: 10
hw.perflevel1.physicalcpu: 2
hw.perflevel0.physicalcpu: 8
machdep.cpu.brand_string: Apple M1 Pro
"""

# https://github.com/timmo001/system-bridge/pull/3408 (M3 Pro with a display; displays shortened)
DISPLAYS_M3_PRO = """\
{
  "SPDisplaysDataType" : [
    {
      "_name" : "Apple M3 Pro",
      "spdisplays_mtlgpufamilysupport" : "spdisplays_metal3",
      "spdisplays_ndrvs" : [
        {
          "_name" : "DELL U2722DE",
          "_spdisplays_pixels" : "2560 x 1440",
          "spdisplays_main" : "spdisplays_yes"
        }
      ],
      "spdisplays_vendor" : "sppci_vendor_Apple",
      "sppci_bus" : "spdisplays_builtin",
      "sppci_cores" : "14",
      "sppci_device_type" : "spdisplays_gpu",
      "sppci_model" : "Apple M3 Pro"
    }
  ]
}
"""

# The shape of https://github.com/exo-explore/exo/pull/74 with the published values of a Mac16,5,
# two data types asked for at once. The first GPU is made up: an external one without MLX's cores.
PROFILER_M4_MAX = """\
{
  "SPDisplaysDataType" : [
    {
      "_name" : "AMD Radeon RX 580",
      "spdisplays_vendor" : "sppci_vendor_amd",
      "sppci_model" : "AMD Radeon RX 580"
    },
    {
      "_name" : "Apple M4 Max",
      "spdisplays_vendor" : "sppci_vendor_Apple",
      "sppci_cores" : "40",
      "sppci_model" : "Apple M4 Max"
    }
  ],
  "SPHardwareDataType" : [
    {
      "_name" : "hardware_overview",
      "activation_lock_status" : "activation_lock_enabled",
      "boot_rom_version" : "11881.140.96",
      "chip_type" : "Apple M4 Max",
      "machine_model" : "Mac16,5",
      "machine_name" : "MacBook Pro",
      "number_processors" : "proc 16:12:4",
      "os_loader_version" : "11881.140.96",
      "physical_memory" : "48 GB"
    }
  ]
}
"""

# https://github.com/kecinzer/hpelitebook850g5-opencore/issues/42
CSRUTIL_ENABLED = "System Integrity Protection status: enabled.\n"
CSRUTIL_DISABLED = "System Integrity Protection status: disabled.\n"

# https://github.com/asmvik/yabai/issues/1800 (macOS 12.5, Apple silicon)
CSRUTIL_CUSTOM = """\
System Integrity Protection status: unknown (Custom Configuration).

Configuration:
\tApple Internal: disabled
\tKext Signing: enabled
\tFilesystem Protections: disabled
\tDebugging Restrictions: disabled
\tDTrace Restrictions: enabled
\tNVRAM Protections: disabled
\tBaseSystem Verification: enabled
\tBoot-arg Restrictions: disabled
\tKernel Integrity Protections: disabled
\tAuthenticated Root Requirement: enabled

This is an unsupported configuration, likely to break in the future and leave your machine in an \
unknown state.
"""

# https://github.com/CatMe0w/zouxian/issues/10 (2024; one protection off, head line left out there
# and taken from the output above)
CSRUTIL_DEBUGGING_OFF = """\
System Integrity Protection status: unknown (Custom Configuration).

Configuration:
\tApple Internal: disabled
\tKext Signing: enabled
\tFilesystem Protections: enabled
\tDebugging Restrictions: disabled
\tDTrace Restrictions: enabled
\tNVRAM Protections: enabled
\tBaseSystem Verification: enabled
\tBoot-arg Restrictions: enabled
\tKernel Integrity Protections: enabled
\tAuthenticated Root Requirement: enabled
"""

# https://github.com/xzhih/one-key-hidpi/issues/79 (macOS 10.15: everything off, and not called so)
CSRUTIL_CUSTOM_10_15 = """\
System Integrity Protection status: unknown (Custom Configuration).

Configuration:
\tApple Internal: disabled
\tKext Signing: disabled
\tFilesystem Protections: disabled
\tDebugging Restrictions: disabled
\tDTrace Restrictions: disabled
\tNVRAM Protections: disabled
\tBaseSystem Verification: disabled

This is an unsupported configuration, likely to break in the future and leave your machine in an \
unknown state.
"""

# https://github.com/foxlet/macOS-Simple-KVM/issues/363 (macOS in a virtual machine, 2020; the
# prompt's blank first line is part of it)
CSRUTIL_CUSTOM_VIRTUAL = """\

System Integrity Protection status: unknown (Custom Configuration).

Configuration:
\tApple Internal: disabled
\tKext Signing: disabled
\tFilesystem Protections: disabled
\tDebugging Restrictions: enabled
\tDTrace Restrictions: enabled
\tNVRAM Protections: enabled
\tBaseSystem Verification: enabled

This is an unsupported configuration, likely to break in the future and leave your machine in an \
unknown state.

"""

# https://github.com/lionheart/openradar-mirror/issues/5820 (OS X 10.11: says "enabled", is off)
CSRUTIL_CUSTOM_10_11 = """\
System Integrity Protection status: enabled (Custom Configuration).

Configuration:
    Apple Internal: disabled
    Kext Signing: disabled
    Filesystem Protections: disabled
    Debugging Restrictions: disabled
    DTrace Restrictions: disabled
    NVRAM Protections: disabled

This is an unsupported configuration, likely to break in the future and leave your machine in an \
unknown state.
"""

# https://theapplewiki.com/wiki/System_Integrity_Protection names the command; wording as published
# in https://github.com/HackTricks-wiki/hacktricks (macOS 11 and later)
AUTHENTICATED_ROOT_ENABLED = "Authenticated Root status: enabled\n"
AUTHENTICATED_ROOT_DISABLED = "Authenticated Root status: disabled\n"

# https://github.com/usnistgov/macos_security/issues/226 (macOS 13.2, two systems): it asks
# which is meant, and waits for ever
AUTHENTICATED_ROOT_ASKS = """\
This computer has several macOS installations:
  1: Pirates
  2: 💬

Pick a macOS installation (1..2): """

# https://github.com/mayankk2308/purge-wrangler/issues/137 (older than macOS 11; shortened)
AUTHENTICATED_ROOT_UNKNOWN = """\
csrutil: invalid command authenticated-root
usage: csrutil <command>
Modify the System Integrity Protection configuration. All configuration changes apply to the \
entire machine.
Available commands:

    clear
        Clear the existing configuration. Only available in Recovery OS.
    disable
        Disable the protection on the machine. Only available in Recovery OS.
    enable
        Enable the protection on the machine. Only available in Recovery OS.
"""

# https://github.com/jundot/omlx/issues/3037 (macOS 26, a Thunderbolt 4 Mac)
RDMA_ENABLED = "enabled\n"

# https://github.com/osquery/osquery/issues/8195; other levels: osquery pull request 8215
IBRIDGE_FULL = """\
{
  "SPiBridgeDataType" : [
    {
      "ibridge_secure_boot" : "Full Security"
    }
  ]
}
"""

# https://github.com/exelban/stats/issues/749 (M1 Pro, macOS 12.1)
PMSET_APPLE_SILICON = """\
Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
Note: No CPU power status has been recorded
"""

# https://github.com/yujitach/MenuMeters/issues/158 (Intel), in the layout of `pmset -g therm`
PMSET_INTEL_COOL = """\
2020-06-26 12:30:37 +0200 CPU Power notify
\tCPU_Scheduler_Limit \t= 100
\tCPU_Available_CPUs \t= 8
\tCPU_Speed_Limit \t= 100
"""
PMSET_INTEL_THROTTLED = """\
2020-06-26 12:30:37 +0200 CPU Power notify
\tCPU_Scheduler_Limit \t= 40
\tCPU_Available_CPUs \t= 8
\tCPU_Speed_Limit \t= 28
"""

# Not one recorded output but the published layout (https://github.com/traycerai/traycer/pull/1791)
# filled with our service: parts of it have pids and states of their own, one tab further in.
LAUNCHCTL_PRINT_RUNNING = """\
gui/501/io.darkbloom.provider = {
\tactive count = 1
\tpath = /Users/owner/Library/LaunchAgents/io.darkbloom.provider.plist
\ttype = LaunchAgent
\tstate = running

\tprogram = /Users/owner/venv/bin/python
\targuments = {
\t\t/Users/owner/venv/bin/python
\t\t-I
\t}

\tdomain = gui/501 [100008]
\tminimum runtime = 10
\texit timeout = 150
\truns = 1
\tpid = 4321
\timmediate reason = speculative
\tlast exit code = (never exited)

\tspawn type = interactive (4)
\tresource coalition = {
\t\tID = 1234
\t\tstate = active
\t\tpid = 99
\t}
}
"""
LAUNCHCTL_PRINT_CRASHED = """\
gui/501/io.darkbloom.provider = {
\tactive count = 0
\tstate = not running

\truns = 3
\tlast exit code = 78: EX_CONFIG

\tjetsam coalition = {
\t\tpid = 99
\t}
}
"""

# https://github.com/macadmins/nudge/issues/621 (1 in a virtual machine)
HV_PRESENT = "kern.hv_vmm_present: 1\n"
HV_ABSENT = "kern.hv_vmm_present: 0\n"
