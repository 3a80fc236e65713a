// Plain accesses, and names for places in the program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>

namespace emu {

struct Thread;

namespace race {

void plain(Thread& thread, const void* p, size_t size, bool writes, uint32_t place);

// A number for an operation at a line, or for an address in the code, and its text.
uint32_t place(const char* operation, const std::source_location& site);
uint32_t place(const void* code);
std::string place_name(uint32_t place);

}  // namespace race
}  // namespace emu
