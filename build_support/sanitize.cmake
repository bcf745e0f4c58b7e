# -DSANITIZE=ON compiles with AddressSanitizer and UndefinedBehaviorSanitizer; any report ends the process.
option(SANITIZE "Compile with AddressSanitizer and UndefinedBehaviorSanitizer" OFF)
if(SANITIZE)
  # vptr would need type information of classes that torch keeps to itself.
  add_compile_options(-O1 -g1 -fno-omit-frame-pointer
    -fsanitize=address,undefined,float-cast-overflow -fno-sanitize=vptr -fno-sanitize-recover=all)
  add_link_options(-fsanitize=address,undefined)
endif()
